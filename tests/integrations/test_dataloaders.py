"""Loaders iterated over beside training: their own iteration is what it would have been."""

import pytest
import torch
from torch.utils.data import DataLoader, RandomSampler

from evenkeel.integrations.dataloaders import undisturbed

DATA = list(range(12))


def accelerated():
    from accelerate import Accelerator
    from accelerate.utils import DataLoaderConfiguration

    accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True))
    return accelerator.prepare(DataLoader(DATA, batch_size=2, shuffle=True))


LOADERS = {
    "in order": lambda: DataLoader(DATA, batch_size=2),
    "shuffled": lambda: DataLoader(DATA, batch_size=2, shuffle=True, generator=torch.Generator().manual_seed(1)),
    "a sampler of its own": lambda: DataLoader(
        DATA, batch_size=2, sampler=RandomSampler(DATA, generator=torch.Generator().manual_seed(1))
    ),
    "workers that stay": lambda: DataLoader(
        DATA,
        batch_size=2,
        shuffle=True,
        generator=torch.Generator().manual_seed(1),
        num_workers=1,
        persistent_workers=True,
    ),
    "accelerate's": accelerated,
    "a list": lambda: [torch.tensor(pair) for pair in zip(DATA[::2], DATA[1::2], strict=True)],
}


def read(loader, at=None, borrow=None):
    """Two epochs' numbers; of the loader borrowed at that batch of the first, if any, as many batches as are asked."""
    torch.manual_seed(0)
    numbers = []
    for epoch in range(2):
        for i, batch in enumerate(loader):
            if (epoch, i) == (0, at):
                with torch.random.fork_rng(), undisturbed(loader) as borrowed:
                    lent = [b.tolist() for b, _ in zip(borrowed, range(borrow), strict=False)]
                    assert len(lent) == borrow
            numbers.append(batch.tolist())
    return numbers


@pytest.mark.parametrize("borrow", [2, 6])
@pytest.mark.parametrize("at", [0, 3])
@pytest.mark.parametrize("name", LOADERS)
def test_its_own_iteration_goes_on_as_it_would_have(name, at, borrow):
    assert read(LOADERS[name](), at, borrow) == read(LOADERS[name]())


@pytest.mark.parametrize("name", LOADERS)
def test_what_is_lent_out_holds_every_sample_once(name):
    with undisturbed(LOADERS[name]()) as loader:
        assert sorted(number for batch in loader for number in batch.tolist()) == DATA


def test_accelerate_does_not_take_it_for_training():
    loader = accelerated()
    for _ in loader:
        with undisturbed(loader) as borrowed:
            list(borrowed)
            next(iter(borrowed))
        assert loader.gradient_state.active_dataloader is loader
    assert not loader.gradient_state.in_dataloader


def test_an_error_puts_the_generator_back():
    generator = torch.Generator().manual_seed(1)
    state = generator.get_state()
    with pytest.raises(KeyError), undisturbed(DataLoader(DATA, shuffle=True, generator=generator)) as loader:
        next(iter(loader))
        raise KeyError
    assert torch.equal(generator.get_state(), state)
