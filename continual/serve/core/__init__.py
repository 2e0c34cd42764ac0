"""The HTTP server's parts that know no route: batching, admission, authentication, metrics, errors."""
