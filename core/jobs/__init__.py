"""A pruning job: what it asks for (`spec`), where it stands (`state`), where it is kept (`store`)."""
