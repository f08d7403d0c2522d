"""Why an engine failed: candidates for the cause, and what each of them leaves unexplained."""
