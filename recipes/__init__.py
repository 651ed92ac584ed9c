"""The shipped recipes (YAML), installed as `personalize.recipes`."""
