"""What ``mmfl-fast bench`` measures. Installed as ``mmfl_fast.benches``.

One file per primitive lists its cases (``CASES`` for a CPU, ``GPU_CASES``) with what they are compared with
and what they should reach; :mod:`.ops` runs them.
"""
