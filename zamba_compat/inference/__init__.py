"""Run a model and judge it: one function per command, each with a report that tests and notebooks read too."""
