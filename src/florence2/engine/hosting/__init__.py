"""Where engines live when a loop in this process is not enough: other processes and devices, asyncio.

Knows nothing of how answers are found.
"""
