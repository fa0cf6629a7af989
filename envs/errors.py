"""Errors of the environments: each message says what was expected, what came, and the mend."""


class EnvError(Exception):
    """Base of all errors of this package."""


class UnknownTaskError(EnvError, KeyError):
    """A task name that is not registered."""

    def __str__(self) -> str:
        """Return the message as it is; `KeyError` would show it quoted."""
        return str(self.args[0]) if self.args else ""


class ActionError(EnvError, ValueError):
    """An action of the wrong shape, or one that is not finite."""


class EpisodeError(EnvError, RuntimeError):
    """A call that needs a running episode, made before `reset` or after the episode's end."""


class RenderError(EnvError, RuntimeError):
    """A frame was asked for that cannot be drawn."""


class EnvMetaError(EnvError, ValueError):
    """A file describes an environment that cannot be made here."""


class SnapshotError(EnvError, ValueError):
    """A snapshot of another task or model than the environment's."""
