"""The HTTP app: OpenAI's routes, the glass's routes, and the page, all over one queue of work."""
