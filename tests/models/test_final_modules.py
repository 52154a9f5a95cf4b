"""What the networks say of their own parts."""

import pytest

from kdbench.catalogue.networks import network, networks
from kdbench.models.checkpoints import _meta_network


@pytest.mark.parametrize("name", [name for name, net in networks().items() if net.builder != "clip"])
def test_every_part_is_named_once(name):
    net = _meta_network(name)
    children = dict(net.named_children())
    rest = {net.classifier_name, *net.tail_modules}
    assert rest <= children.keys()
    assert set(map(id, net.feature_modules())) == {id(part) for key, part in children.items() if key not in rest}


@pytest.mark.parametrize("name", [name for name, net in networks().items() if len(net.features) > 1])
def test_the_last_batch_norms_have_their_stages_channels(name):
    net = _meta_network(name)
    if net.stages == ():
        assert network(name).builder == "imagenet_shufflenetv2"
        return
    share = 2 if name.startswith("shufflenetv2") else 1  # half of its channels pass the last unit as they are
    assert [norm.num_features * share for norm in net.last_norms()] == [c for c, _ in network(name).features[1:]]
