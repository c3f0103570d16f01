"""HTML pages: the report of a project, and the preview of a run."""
