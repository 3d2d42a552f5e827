//! Percentiles of a series. Pure.

use std::time::Duration;

use serde::Serialize;

/// What is told of a series, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Figures {
    /// Half of the values are not above it.
    pub p50_ms: f64,
    /// Nineteen of twenty values are not above it.
    pub p95_ms: f64,
    /// Ninety-nine of a hundred values are not above it.
    pub p99_ms: f64,
    /// The smallest.
    pub min_ms: f64,
    /// The largest.
    pub max_ms: f64,
}

impl Figures {
    /// The figures of a series, all 0 of an empty one.
    pub fn of(series: impl IntoIterator<Item = Duration>) -> Self {
        let mut values: Vec<f64> = series.into_iter().map(|value| round(value.as_secs_f64() * 1000.0)).collect();
        values.sort_by(f64::total_cmp);
        let (Some(min_ms), Some(max_ms)) = (values.first().copied(), values.last().copied()) else {
            return Self::default();
        };
        let [p50_ms, p95_ms, p99_ms] = [50, 95, 99].map(|percent| nearest_rank(&values, percent));
        Self { p50_ms, p95_ms, p99_ms, min_ms, max_ms }
    }
}

/// The value at the percentile by the nearest-rank method: always one that was measured. `sorted` is not empty.
fn nearest_rank(sorted: &[f64], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted[rank - 1]
}

/// To a hundredth of a millisecond: more is noise.
fn round(ms: f64) -> f64 {
    (ms * 100.0).round() / 100.0
}

/// A figure for people.
pub fn milliseconds(ms: f64) -> String {
    format!("{ms:.1} ms")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let of = |values: &[u64]| Figures::of(values.iter().map(|value| Duration::from_millis(*value)));
        let ten = of(&[10, 9, 8, 7, 6, 5, 4, 3, 2, 1]);
        assert_eq!(ten, Figures { p50_ms: 5.0, p95_ms: 10.0, p99_ms: 10.0, min_ms: 1.0, max_ms: 10.0 });
        assert_eq!(of(&[7]), Figures { p50_ms: 7.0, p95_ms: 7.0, p99_ms: 7.0, min_ms: 7.0, max_ms: 7.0 });
        assert_eq!(of(&[]), Figures::default());
    }
}
