"""Parts of the server without routes: admission, batching, authentication, metrics, errors."""
