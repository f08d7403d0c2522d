"""What people look at: the page of a run. Reads runs; samples and scores nothing."""
