"""Learn many tasks in order of arrival: preflight, claims, worker loop, routed scores, audit."""
