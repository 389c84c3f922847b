"""Data of an equation that UPS doesn't know: Korteweg-de Vries, u_t + 6 u u_x + u_xxx = 0.

python tests/helpers/kdv.py kdv.npy      500 x 101 x 128, in half a minute
"""

import sys

import numpy as np

LENGTH, DT = 32.0, 0.1


def solve(n=500, frames=101, points=128, seed=0, substeps=100):
    """Two solitons and a low wave (N, T, X), by RK4 with an integrating factor (Trefethen 2000)."""
    rng = np.random.default_rng(seed)
    x = np.arange(points) * LENGTH / points
    k = 2 * np.pi / LENGTH * np.arange(points // 2 + 1)
    height, place = rng.uniform(0.3, 1.2, (n, 2, 1)), rng.uniform(0, LENGTH, (n, 2, 1))
    distance = (x - place + LENGTH / 2) % LENGTH - LENGTH / 2
    u = (2 * height / np.cosh(np.sqrt(height) * distance) ** 2 / 2).sum(1)
    u += 0.1 * np.sin(2 * np.pi * x / LENGTH + rng.uniform(0, 6, (n, 1)))
    h = DT / substeps
    half = np.exp(0.5j * k**3 * h)
    dealiased = k < 2 / 3 * k[-1]

    def slope(v, factor):
        """The slope of exp(-i k^3 t) v, with ``factor`` = exp(i k^3 t)."""
        field = np.fft.irfft(v * factor, points)
        return -3j * k * dealiased * np.fft.rfft(field**2) / factor

    v, out = np.fft.rfft(u), [u]
    for _ in range(frames - 1):
        for _ in range(substeps):
            a = slope(v, 1)
            b = slope(v + h / 2 * a, half)
            c = slope(v + h / 2 * b, half)
            d = slope(v + h * c, half**2)
            v = (v + h / 6 * (a + 2 * b + 2 * c + d)) * half**2
        out.append(np.fft.irfft(v, points))
    return np.stack(out, 1)


if __name__ == "__main__":
    np.save(sys.argv[1], solve().astype(np.float32))
