"""The experiments: data, models, recipes, one training loop, the methods to compare in it, and the report."""
