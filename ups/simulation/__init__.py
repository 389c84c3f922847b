"""A trained model in physical units: rollouts, correctors, guidance and files."""
