"""Names that no other layer of a model has.

Example:
    ```python
    unused_name("conv", {"conv"})   # "conv_2"
    ```
"""


def unused_name(base, taken):
    """`base`, or with the lowest number from 2 on that makes it none of `taken`."""
    name, number = base, 1
    while name in taken:
        number += 1
        name = f"{base}_{number}"
    return name
