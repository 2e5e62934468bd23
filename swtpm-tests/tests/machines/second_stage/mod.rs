//! Second stages at each place that an image can have: they boot on Debian 12's and 13's kernels, leave nothing behind, and
//! are refused where somebody changed them or what they lie on.

mod attacks;
mod places;
mod support;
