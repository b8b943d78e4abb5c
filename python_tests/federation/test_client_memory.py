import gc

import torch

from mmfl_fast.federation.client_memory import ClientMemory

PARAMS = {
    "w": torch.zeros(7, 5),
    "n": torch.zeros(3, dtype=torch.int64),
    "b": torch.zeros(()),
    "t": torch.zeros(4, 6).T,
}


def test_room_has_the_shapes_and_dtypes_and_shares_nothing():
    memory = ClientMemory()
    rooms = [memory.like(PARAMS) for _ in range(3)]
    for i, room in enumerate(rooms):
        assert {n: (t.shape, t.dtype) for n, t in room.items()} == {
            n: (t.shape, t.dtype) for n, t in PARAMS.items()
        }
        for j, tensor in enumerate(room.values()):
            assert tensor.is_contiguous()
            assert tensor.data_ptr() % 16 == 0
            tensor.fill_(10 * i + j)
    for i, room in enumerate(rooms):
        assert all((t == 10 * i + j).all() for j, t in enumerate(room.values()))


def test_a_block_is_used_again_only_when_no_tensor_lies_in_it():
    memory = ClientMemory()
    room = memory.like(PARAMS)
    first, view = room["w"].data_ptr(), room["t"][1:]
    view.fill_(3)
    del room
    gc.collect()
    memory.begin_round()
    other = memory.like(PARAMS)
    assert other["w"].data_ptr() != first
    other["t"].fill_(5)
    assert (view == 3).all()
    del view
    gc.collect()
    memory.begin_round()
    assert memory.like(PARAMS)["w"].data_ptr() == first


def test_what_a_round_did_not_need_is_let_go():
    memory = ClientMemory()
    room = memory.like(PARAMS)
    del room
    gc.collect()
    memory.begin_round()
    assert any(memory._ready.values())
    memory.begin_round()
    assert not any(memory._ready.values())
