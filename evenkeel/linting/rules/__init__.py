"""The rules: one a file, each registered once, here, in the order of codes."""

from __future__ import annotations

from evenkeel.linting.rule import Rule
from evenkeel.linting.rules.ek101_dropout_stays_on import dropout_stays_on
from evenkeel.linting.rules.ek102_statistics_carry_dropout import statistics_carry_dropout
from evenkeel.linting.rules.ek103_initialization_ignores_dropout import initialization_ignores_dropout
from evenkeel.linting.rules.ek104_op_not_understood import op_not_understood
from evenkeel.linting.rules.ek105_rate_out_of_sense import rate_out_of_sense
from evenkeel.linting.rules.ek106_statistics_never_updated import statistics_never_updated
from evenkeel.linting.rules.ek107_momentum_out_of_sense import momentum_out_of_sense
from evenkeel.linting.rules.ek108_statistics_that_cannot_be import statistics_that_cannot_be
from evenkeel.linting.rules.ek109_rate_set_while_training import rate_set_while_training
from evenkeel.linting.rules.ek201_dropout_before_norm import dropout_before_norm
from evenkeel.linting.rules.ek202_dropout_reaches_norm import dropout_reaches_norm
from evenkeel.linting.rules.ek203_dropout_must_stay import dropout_must_stay
from evenkeel.linting.rules.ek301_norm_before_activation import norm_before_activation
from evenkeel.linting.rules.ek302_weight_without_ic import weight_without_ic
from evenkeel.linting.rules.ek401_misplaced_in_branch import misplaced_in_branch
from evenkeel.linting.rules.ek402_several_in_branch import several_in_branch
from evenkeel.linting.rules.ek403_dropout_on_trunk import dropout_on_trunk
from evenkeel.linting.rules.ek404_head_dropout_after_pool import head_dropout_after_pool

ALL: tuple[Rule, ...] = (
    dropout_stays_on,
    statistics_carry_dropout,
    initialization_ignores_dropout,
    op_not_understood,
    rate_out_of_sense,
    statistics_never_updated,
    momentum_out_of_sense,
    statistics_that_cannot_be,
    rate_set_while_training,
    dropout_before_norm,
    dropout_reaches_norm,
    dropout_must_stay,
    norm_before_activation,
    weight_without_ic,
    misplaced_in_branch,
    several_in_branch,
    dropout_on_trunk,
    head_dropout_after_pool,
)
