"""Results: the published rows, the measured rows, and figures of both."""
