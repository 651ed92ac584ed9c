"""The built-in plug-ins, installed as `personalize_plugins`: one folder a kind, one module a plug-in."""
