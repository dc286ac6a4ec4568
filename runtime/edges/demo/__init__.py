"""The demo: a scripted stand-in model, a calendar that really writes, and the story they play."""
