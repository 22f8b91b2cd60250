"""What a user can get wrong: one family of errors, each with a sentence that says what to do."""


class AfmolError(Exception):
    """Base of every error that the user can mend; the command line prints its text and exits with 2."""


class ScanError(AfmolError):
    """A stack that cannot be read, or that no model can use."""


class MoleculeError(AfmolError):
    """A molecule that cannot be read, built or simulated."""

    def __init__(self, text: str = "", reason: str = "") -> None:
        super().__init__(text)
        self.reason = reason
        """The kind of mistake in a few words, to count by; empty where nobody counts."""


class ShardError(AfmolError):
    """A file of stored samples that is missing, damaged, or something else."""


class WeightsError(AfmolError):
    """A weight file that cannot be loaded."""


class ConfigError(AfmolError):
    """A configuration, output folder or command line that cannot be used."""
