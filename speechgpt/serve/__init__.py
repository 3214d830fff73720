"""How people reach a model: an HTTP server with a page for the browser, and the sound card of a terminal."""
