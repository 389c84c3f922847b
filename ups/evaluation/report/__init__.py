"""What a run shows at its end: the table in the terminal, the plots, the page."""
