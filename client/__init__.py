"""What a user runs: the SDK, the `neuroprune` command, the embedded stack, and `client.load` for bundles."""
