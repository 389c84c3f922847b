"""Models for other tools: the models that come with UPS, model cards, export."""
