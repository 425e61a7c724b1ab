"""The attention modules, a file a mechanism.

Ultralytics comes first: its import registers these classes (see `nas_attn.registration`), and none of them may be half imported by then.
"""

import ultralytics.nn.tasks  # noqa: F401
