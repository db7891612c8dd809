"""The errors that the pipeline raises for what a user can put right."""


class PipelineError(Exception):
    """Something is wrong with the data, the options or the files; the message says what."""


class FormError(PipelineError, ValueError):
    """A value is not of the form that it must have."""
