"""The HTTP side: routes, problems, probes and pages."""
