from mmfl_fast.experiments.modality_cost import noise_federation, round_cost
from mmfl_fast.experiments.plan import Method

TINY = "width=8,operator_rows=4,layers=1,local_epochs=1"


def test_noise_has_the_modalities_and_rows_told():
    fed = noise_federation(3, (4, 2))
    (task,) = fed.tasks
    assert [tuple(x.shape[1:]) for x in task.inputs.values()] == [(4, 2)] * 3
    assert {client.num_train for client in fed.clients} == {64}
    assert len(fed.clients) == 8


def test_a_model_with_more_inputs_sends_more_and_only_that():
    costs = {
        (name, m): round_cost(Method.parse(f"{name},{TINY}"), m, (5,), rounds=1)
        for name in ("fedavg", "local")
        for m in (1, 3)
    }
    assert costs["local", 3].bytes_up == 0
    # One input layer of 5 x 8 weights and 8 biases for each modality, in float32.
    more = costs["fedavg", 3].bytes_up - costs["fedavg", 1].bytes_up
    assert more == costs["fedavg", 3].bytes_down - costs["fedavg", 1].bytes_down
    assert more == 2 * 4 * (5 * 8 + 8)
    for cost in costs.values():
        assert 0 < cost.client_seconds < 10
        assert 0 < cost.server_seconds < 10
