"""Launch a run over several processes.

``supervisor`` is the parent of one process, ``worker`` the run itself; ``rendezvous`` connects
the parents.
"""
