"""Launch a run over several processes.

``supervisor`` is the parent process of one worker, ``worker`` executes the run, and ``rendezvous``
connects the parents.
"""
