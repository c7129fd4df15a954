"""Launch a multi-process run.

``supervisor`` is the parent process of one worker, ``worker`` executes the run, ``rendezvous``
connects the parents, and ``runtime_errors`` explains the messages of JAX's distributed runtime.
"""
