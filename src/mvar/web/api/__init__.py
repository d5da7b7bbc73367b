"""The HTTP service, in the form of OpenAI's Images API."""
