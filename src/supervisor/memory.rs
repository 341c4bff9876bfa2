//! Whether the kernel has ended processes for want of memory.

use std::fs;

/// How many processes of the host the kernel has ended so far; 0 where it does not count them.
pub fn kills() -> u64 {
    fs::read_to_string("/proc/vmstat").ok().and_then(|text| read(&text)).unwrap_or(0)
}

fn read(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_is_read_among_the_others() {
        assert_eq!(read("oom_kill_x 1\noom_kill 42\npgfault 7\n"), Some(42));
        assert_eq!(read("pgfault 7\n"), None);
    }
}
