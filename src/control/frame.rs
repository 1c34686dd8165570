//! Frames: a big-endian `u32` length, then that many bytes of JSON.

use std::io::{self, Read, Write};

use serde::{Serialize, de::DeserializeOwned};

/// Bytes. The largest legitimate frames have some thousand apps, each with its spec: 2 KB or more. (A false
/// length costs nothing: memory is taken as bytes arrive.)
pub const MAX_FRAME: usize = 16 << 20;

/// Writes one frame with one call to `write_all`.
pub fn write<T: Serialize>(mut to: impl Write, value: &T) -> io::Result<()> {
    to.write_all(&encode(value)?)?;
    to.flush()
}

/// Encodes a frame; fails with [`io::ErrorKind::InvalidInput`] if it would be too large.
pub fn encode<T: Serialize>(value: &T) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, value)?;
    let length = bytes.len() - 4;
    if length > MAX_FRAME {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("a message of {length} bytes is larger than {MAX_FRAME}"),
        ));
    }
    bytes[..4].copy_from_slice(&(length as u32).to_be_bytes());
    Ok(bytes)
}

/// The length in a frame's head, checked against [`MAX_FRAME`].
pub fn length(head: [u8; 4]) -> io::Result<usize> {
    let length = u32::from_be_bytes(head) as usize;
    if length > MAX_FRAME {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("a message of {length} bytes is larger than {MAX_FRAME}"),
        ));
    }
    Ok(length)
}

/// Reads one frame; `None` at a clean end of the stream.
pub fn read<T: DeserializeOwned>(mut from: impl Read) -> io::Result<Option<T>> {
    let mut head = [0; 4];
    match from.read(&mut head[..1])? {
        0 => return Ok(None),
        _ => from.read_exact(&mut head[1..])?,
    }
    let mut body = vec![0; length(head)?];
    from.read_exact(&mut body)?;
    Ok(Some(serde_json::from_slice(&body)?))
}

/// Removes the first frame from the bytes that have come so far; `None` until it is complete.
pub fn take<T: DeserializeOwned>(bytes: &mut Vec<u8>) -> io::Result<Option<T>> {
    let Some(head) = bytes.first_chunk::<4>() else {
        return Ok(None);
    };
    let end = 4 + length(*head)?;
    let Some(body) = bytes.get(4..end) else {
        return Ok(None);
    };
    let value = serde_json::from_slice(body).map_err(|error| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("it makes no sense: {error}"),
        )
    })?;
    bytes.drain(..end);
    Ok(Some(value))
}
