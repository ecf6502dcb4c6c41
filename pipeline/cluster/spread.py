"""How a training's ranks are spread over nodes: arithmetic alone."""


def usable_slots(per_node: int, tensor_parallel: int) -> int:
    """Ranks that a node takes: whole tensor-parallel groups, where one fits on a node.

    A group that is larger than a node has to cross its border, and then every slot is used.
    """
    return per_node - per_node % tensor_parallel if tensor_parallel <= per_node else per_node


def ranks_of_nodes(ranks: int, nodes: int, per_node: int) -> tuple[int, ...]:
    """Ranks on every node: the first nodes are filled, those that are not needed get none.

    Raises: ValueError if there is no room.
    """
    if ranks > nodes * per_node:
        raise ValueError(f"{ranks} ranks on {nodes} nodes of {per_node}")
    return tuple(max(0, min(per_node, ranks - node * per_node)) for node in range(nodes))


def fitting_data_parallel(asked: int, *, rows: int, slots: int, tensor_parallel: int) -> int:
    """Data-parallel ranks where there is room for `slots` processes: as many as asked for, or the most below that which
    share the `rows` micro batches of a step evenly.

    Raises: ValueError if not even one tensor-parallel group fits.
    """
    most = min(asked, slots // tensor_parallel)
    if most < 1:
        raise ValueError(f"{tensor_parallel} tensor-parallel ranks, room for {slots}")
    return max(ranks for ranks in range(1, most + 1) if rows % ranks == 0)
