"""Every error that fp-audit raises on purpose.

::

    FpAuditError                 something the user can act on; its text is one line for a person
    ├── UsageError               the call is wrong: an option, a name, a path            (exit code 2)
    │   ├── DataError            DATA cannot be read or does not fit the model
    │   ├── VictimError          no such victim, a victim of that name exists, a damaged register
    │   ├── BundleError          a bundle of evidence that is damaged or is none
    │   └── PluginError          no such method, attack, adapter or report; two of one name
    ├── TargetError              this one target cannot be judged: it becomes ``Skipped(reason)``
    │   ├── UnavailableTarget    not found, gated, no network, not in the cache while offline
    │   ├── UnsupportedModel     a healthy model of a kind that no adapter can call
    │   ├── UnsafeModel          opening it would run or read something it must not
    │   ├── CorruptModel         truncated, not what its name says, inconsistent
    │   └── SandboxError         the child process died, hung or broke a limit
    │       ├── SandboxCrash
    │       ├── SandboxTimeout
    │       └── SandboxMemory
    ├── AccessError              a method asked for more than the model (or its declaration) offers
    └── NotApplicable            a method has nothing to say about this pair: it does not vote
        └── Unanswered           of a model that cannot be asked, the answers to some images are missing

The text of an error says what was found, what was expected and what to do. Anything that is not
in this tree is a bug and may end in a traceback.
"""


class FpAuditError(Exception):
    """Base of all errors that are meant for the user. ``str(error)`` is one line."""


class UsageError(FpAuditError):
    """The call is wrong; nothing was computed."""


class DataError(UsageError):
    """DATA cannot be read, or does not fit the model."""


class VictimError(UsageError):
    """The register has no such victim, has it already, or is damaged."""


class BundleError(UsageError):
    """A bundle of evidence is damaged, was changed after it was written, or is none."""


class PluginError(UsageError):
    """No plugin of that name, or two of them."""


class TargetError(FpAuditError):
    """One target cannot be judged. The scan goes on; the text is the reason in the report."""


class UnavailableTarget(TargetError):
    """The target is not there: not found, gated, no network, not cached while offline."""


class UnsupportedModel(TargetError):
    """The target is a model that no adapter can call."""


class UnsafeModel(TargetError):
    """Opening the target would execute or read something that it must not."""


class CorruptModel(TargetError):
    """The target's files are truncated, inconsistent or not what their names say."""


class SandboxError(TargetError):
    """The child process that had the target open did not finish."""


class SandboxCrash(SandboxError):
    """The child process died."""


class SandboxTimeout(SandboxError):
    """The child process exceeded its wall or CPU time."""


class SandboxMemory(SandboxError):
    """The child process exceeded its memory limit."""


class AccessError(FpAuditError):
    """A method asked a model for something that the model, or the method's declaration, does not offer."""


class NotApplicable(FpAuditError):
    """A method has nothing to say about this pair of models; the text says why."""


class Unanswered(NotApplicable):
    """Only what a model said is known, and it was not shown all of these images."""
