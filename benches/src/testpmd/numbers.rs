//! Reads the tables that testpmd prints.

/// Received frames of all ports, as `show port stats all` lists them; `None` before the table is complete.
pub(super) fn received(text: &str, ports: usize) -> Option<u64> {
    let counts: Vec<u64> = text
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("RX-packets:"))
        .filter_map(|rest| rest.split_whitespace().next()?.parse().ok())
        .collect();
    let complete = text.matches("Tx-pps:").count() >= ports;
    (complete && counts.len() >= ports).then(|| counts.iter().sum())
}

/// Cycles of the forwarding rounds that had frames, as `show fwd stats all` prints them with `--record-core-cycles`.
pub(super) fn busy_cycles(text: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.trim_start().starts_with("CPU cycles/packet="))?;
    line.split_once("total cycles=")?.1.split_whitespace().next()?.parse().ok()
}

/// The receive and the transmit path that virtio-user has chosen on its first port, from its log.
pub(super) fn chosen_paths(log: &str) -> Vec<String> {
    log.lines()
        .filter(|line| line.contains("set_rxtx_funcs") && line.ends_with("port 0"))
        .filter_map(|line| Some(line.split_once("virtio: ")?.1.trim_end_matches(" on port 0").to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATS: &str = "
  ######################## NIC statistics for port 0  ########################
  RX-packets: 17361440   RX-missed: 0          RX-bytes:  1111132160
  TX-packets: 17361696   TX-errors: 0          TX-bytes:  1111148544

  Throughput (since last show)
  Rx-pps:      2955722          Rx-bps:   1513329840
  Tx-pps:      2955722          Tx-bps:   1513329840
";

    #[test]
    fn received_frames_are_those_of_all_ports_once_all_are_printed() {
        assert_eq!(received(STATS, 1), Some(17_361_440));
        assert_eq!(received(STATS, 2), None);
        assert_eq!(received(&STATS.repeat(2), 2), Some(2 * 17_361_440));
        assert_eq!(received("  RX-packets: 12", 1), None);
    }

    #[test]
    fn cycles_are_found_in_their_line() {
        let text = "\n  CPU cycles/packet=582.25 (total cycles=10104423265 / total mac packets=17361440) at 2600 MHz Clock\n";
        assert_eq!(busy_cycles(text), Some(10_104_423_265.0));
        assert_eq!(busy_cycles("testpmd> "), None);
    }

    #[test]
    fn the_paths_chosen_are_taken_from_the_log() {
        let log = "set_rxtx_funcs(): virtio: using inorder Tx path on port 0\n\
                   set_rxtx_funcs(): virtio: using inorder Rx path on port 0\n\
                   set_rxtx_funcs(): virtio: using inorder Rx path on port 1\n";
        assert_eq!(chosen_paths(log), ["using inorder Tx path", "using inorder Rx path"]);
    }
}
