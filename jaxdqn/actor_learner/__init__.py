"""Training with asynchronous actors, after Ape-X (Horgan et al. 2018).

``actor``, ``shard`` and ``group_learner`` are pure functions. ``workers`` holds their state in a
process. ``engine`` starts the workers on Ray and drives them. Only ``ray_cluster`` imports Ray.
"""
