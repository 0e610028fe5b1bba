"""A suspect model is opened in a child process that can do little besides answering.

::

    with Sandbox() as sandbox:
        sandbox.warm(("onnxruntime",))                      # optional: start importing now
        with sandbox.child("package.module:factory", ("onnxruntime",), readable=[model]) as child:
            answer = child.call({"images": "..."})

For every set of preloaded libraries there is one *warm server* (``_warm``): it has imported them, has run
nothing yet, and forks one child per suspect, so that a child costs milliseconds. In the child,
``factory()`` returns ``handle(request) -> answer``, which is called once per request and may keep state.

What a child cannot do, where the kernel offers the means (Linux 5.13 or later; ``confinement`` measures it):
reach a network; read anything but its ``readable`` paths, Python's modules and the system's libraries; write
outside its scratch folder; start or signal processes; outlive us; use more memory, CPU time, files, disk or
wall time than ``Limits``; print on our terminal. It has none of our environment variables but an allow-list
and gets no descriptor but its connection. The parent reads JSON of bounded length from it and nothing else.

What remains: the kernel itself is the wall, so a kernel bug is a way out; a child can waste what its limits
allow; it can lie in its answers; modules on the import path are readable, secrets in them too.
"""

from fp_audit.sandbox._probe import Confinement, confinement
from fp_audit.sandbox._session import Child, Limits, Sandbox

__all__ = ["Child", "Confinement", "Limits", "Sandbox", "confinement"]
