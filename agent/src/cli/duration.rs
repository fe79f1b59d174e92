use std::time::Duration;

/// Reads `90s`, `15m`, `1h`, `7d`; a number alone is seconds.
pub(super) fn parse(text: &str) -> Result<Duration, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: u64 =
        number.parse().map_err(|_| format!("{text:?} is no duration such as 30s, 15m or 1h"))?;
    let seconds = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 24 * 3600,
        _ => return Err(format!("{unit:?} is none of the units s, m, h, d")),
    };
    number
        .checked_mul(seconds)
        .filter(|seconds| *seconds <= 10 * 365 * 24 * 3600)
        .map(Duration::from_secs)
        .ok_or_else(|| format!("{text:?} is longer than ten years"))
}
