//! A training run's figures as TensorBoard reads them: one event file, written from `metrics.jsonl`.
//!
//! An event file is a row of TFRecords (length, masked CRC-32C of it, data, masked CRC-32C of them;
//! tensorflow `core/lib/io/record_writer.cc`), each the protobuf `Event` (`core/util/event.proto`).
//! TensorBoard wants a wall time; here it is the step, so that the file is a function of its figures.

use std::fs;
use std::path::Path;

use contract::{StageError, at};
use serde_json::Value;

/// Where the file lies in an output. TensorBoard looks for `tfevents` in the name.
pub const FILE: &str = "tensorboard/events.out.tfevents.0.train";

/// What is shown, under the names that the metrics have for it.
const TAGS: [&str; 6] = ["loss", "lr", "grad_norm", "eval_loss", "delta_magnitude", "delta_direction"];

/// Writes the figures of a `metrics.jsonl` under `folder`.
///
/// # Errors
/// If a line is no JSON, or the disk says no.
pub fn write(folder: &Path, metrics: &str) -> Result<(), StageError> {
    let path = folder.join(FILE);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(at(parent))?;
    }
    fs::write(&path, events(metrics)?).map_err(at(&path))
}

/// The file's bytes.
fn events(metrics: &str) -> Result<Vec<u8>, StageError> {
    let mut file = record(&event(0, 3, b"brain.Event:2"));
    for line in metrics.lines() {
        let line: Value = serde_json::from_str(line)?;
        let step = line.get("step").and_then(Value::as_u64).unwrap_or(0);
        let figures = TAGS.iter().filter_map(|tag| Some((*tag, line.get(tag)?.as_f64()?)));
        let summary: Vec<u8> = figures.flat_map(|(tag, value)| scalar(tag, value)).collect();
        file.extend(record(&event(step, 5, &summary)));
    }
    Ok(file)
}

/// `Event`: `wall_time` = 1 and `step` = 2, left out where 0, then `file_version` = 3 or `summary` = 5.
fn event(step: u64, field: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    if step > 0 {
        bytes.push((1 << 3) | 1);
        bytes.extend((step as f64).to_le_bytes());
        bytes.push(2 << 3);
        varint(step, &mut bytes);
    }
    message(field, content, &mut bytes);
    bytes
}

/// `Summary.value` = 1: a `Value` with `tag` = 1 and `simple_value` = 2, a float.
fn scalar(tag: &str, value: f64) -> Vec<u8> {
    let (mut inner, mut bytes) = (Vec::new(), Vec::new());
    message(1, tag.as_bytes(), &mut inner);
    inner.push((2 << 3) | 5);
    inner.extend((value as f32).to_le_bytes());
    message(1, &inner, &mut bytes);
    bytes
}

/// A field with a length: a text or a message.
fn message(field: u8, content: &[u8], to: &mut Vec<u8>) {
    to.push((field << 3) | 2);
    varint(content.len() as u64, to);
    to.extend(content);
}

fn varint(mut value: u64, to: &mut Vec<u8>) {
    while value >= 0x80 {
        to.push((value as u8) | 0x80);
        value >>= 7;
    }
    to.push(value as u8);
}

fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let parts: [&[u8]; 4] = [&length, &masked(&length).to_le_bytes(), data, &masked(data).to_le_bytes()];
    parts.concat()
}

/// TFRecord's mask, against checksums of checksums.
fn masked(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// Castagnoli's polynomial, reflected, bit by bit: the files are small.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_castagnolis() {
        // RFC 3720, B.4
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    /// Written with tensorboard 2.21's `RecordWriter` and protobuf classes.
    const GOLDEN: &str = "\
        0f000000000000006d532b091a0d627261696e2e4576656e743a32fc9851292500000000000000eabc36f30900000000\
        0000f03f10012a180a0b0a046c6f737315000020400a090a026c7215cdcccc3d0fea3f9f3800000000000000a3797d57\
        090000000000c0724010ac022a2a0a0b0a046c6f7373150000a03f0a090a026c7215000000000a100a096576616c5f6c\
        6f73731566664640613f9ef0";

    #[test]
    fn the_bytes_are_those_of_tensorboards_own_writer() {
        let metrics = r#"{"step":1,"loss":2.5,"lr":0.1}
{"step":300,"loss":1.25,"lr":0.0,"grad_norm":null,"label_tokens":7,"eval_loss":3.1}"#;
        let hex: String = events(metrics).unwrap().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, GOLDEN);
    }

    #[test]
    fn a_null_and_an_absent_figure_give_no_point() {
        let with = |line: &str| events(line).unwrap();
        let plain = with(r#"{"step":300,"loss":2.5}"#);
        assert_eq!(plain, with(r#"{"step":300,"loss":2.5,"grad_norm":null,"label_tokens":7}"#));
        assert_eq!(with(r#"{"step":300,"loss":2.5,"lr":0.5}"#).len(), plain.len() + 11);
    }
}
