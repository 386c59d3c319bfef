"""Models of which a training phase trains a named part, or some modules of it."""

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence

from torch import nn

from pipeline.validation import suggestion


class PartlyTrained(nn.Module):
    """A model with named parts."""

    @abstractmethod
    def parts(self) -> dict[str, list[nn.Module]]:
        """The modules of each part but `all`, which is the whole."""

    def frozen_parameters(self) -> Iterable[nn.Parameter]:
        """The parameters that no phase trains, whichever part it trains."""
        return ()

    def trainable(self, part: str, only: Sequence[str] = ()) -> Iterator[nn.Parameter]:
        """The parameters of one part without those `fixed`, or those of its modules named in `only`.

        Raises ValueError for a part that there is not, and for a module that has no such parameters.
        """
        parts = {"all": [self], **self.parts()}
        if part not in parts:
            raise ValueError(f"{type(self).__name__} has no part {part!r}; its parts: {', '.join(parts)}")
        fixed = {id(parameter) for parameter in self.frozen_parameters()}
        whole = [p for module in parts[part] for p in module.parameters() if id(p) not in fixed]
        if not only:
            yield from whole
            return
        movable = {id(parameter) for parameter in whole}
        by_name = {name: [p for p in module.parameters() if id(p) in movable] for name, module in self.named_modules()}
        for name in only:
            if not by_name.get(name):
                fitting = [inner for inner, parameters in by_name.items() if inner and parameters]
                raise ValueError(f"{part} has no module {name!r} that can be trained{suggestion(name, fitting)}")
            yield from by_name[name]
