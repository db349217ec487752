"""The benchmark suite of fastrnn: `python -m bench` in the root of the repository.

How it measures, and why the numbers can be trusted
---------------------------------------------------
- A `Case` (cases.py) is one shape of one job; grids.py lists them. tests/cases.py draws its
  numbers from a seed, so every process has the same ones.
- Each peer (peers/) lives in a process of its own (worker.py), pinned to the same cores, and is
  stopped (SIGSTOP) while another is being timed: no spinning thread pool can disturb a neighbour.
- worker.py compares every output and gradient with fastrnn.reference in float64 before it times
  anything. A peer that fails is reported as wrong and is not timed.
- race.py runs rounds that go from peer to peer; ratios are formed within a round, and their median
  is reported.
- The grid `cells` (equations.py) races cells from equations: definitions.py has their texts,
  layernorm.py what is right of one that fastrnn.reference does not know. Peers that compile have
  300 seconds for a case; their first call is reported and not part of any ratio.
- The grid `programs` (programs/) races whole programs that train with PyTorch: as they are, and
  through `fastrnn.torch.patch()`. Their losses are compared. The grid `modules` (modules.py) races
  single modules of PyTorch against the same ones after `fastrnn.torch.accelerate`.
- probe.py measures this machine in the same run, limits.py makes of it the least time that a case
  can take.
"""
