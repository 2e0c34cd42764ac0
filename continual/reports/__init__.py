"""Reports: measures, figures and pages of a stream, computed from the registry alone."""
