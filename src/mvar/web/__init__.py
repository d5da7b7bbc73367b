"""`mvar serve`: an HTTP service and a page."""
