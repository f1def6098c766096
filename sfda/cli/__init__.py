"""The command line: what each command of ``sfda`` does."""
