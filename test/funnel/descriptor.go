package funnel

import (
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
)

// The messages of Funnel's events.proto, as far as a runner of tasks has to do with
// them, in the form of protobuf itself: its library reads what is sent, and refuses what
// the real server's would.

const (
	str   = descriptorpb.FieldDescriptorProto_TYPE_STRING
	i32   = descriptorpb.FieldDescriptorProto_TYPE_INT32
	u32   = descriptorpb.FieldDescriptorProto_TYPE_UINT32
	enum  = descriptorpb.FieldDescriptorProto_TYPE_ENUM
	inner = descriptorpb.FieldDescriptorProto_TYPE_MESSAGE
)

// field is one of a message; of is its type, for those that have a name.
func field(name string, number int32, kind descriptorpb.FieldDescriptorProto_Type, of string) *descriptorpb.FieldDescriptorProto {
	f := &descriptorpb.FieldDescriptorProto{Name: &name, Number: &number, Type: &kind, Label: descriptorpb.FieldDescriptorProto_LABEL_OPTIONAL.Enum()}
	if of != "" {
		f.TypeName = proto.String(".events." + of)
	}
	return f
}

func many(f *descriptorpb.FieldDescriptorProto) *descriptorpb.FieldDescriptorProto {
	f.Label = descriptorpb.FieldDescriptorProto_LABEL_REPEATED.Enum()
	return f
}

// data is a field of the oneof.
func data(f *descriptorpb.FieldDescriptorProto) *descriptorpb.FieldDescriptorProto {
	f.OneofIndex = proto.Int32(0)
	return f
}

func message(name string, fields ...*descriptorpb.FieldDescriptorProto) *descriptorpb.DescriptorProto {
	return &descriptorpb.DescriptorProto{Name: &name, Field: fields}
}

// withMap gives a message a map of strings to strings.
func withMap(m *descriptorpb.DescriptorProto, name, entry string, number int32) *descriptorpb.DescriptorProto {
	e := message(entry, field("key", 1, str, ""), field("value", 2, str, ""))
	e.Options = &descriptorpb.MessageOptions{MapEntry: proto.Bool(true)}
	m.NestedType = append(m.NestedType, e)
	m.Field = append(m.Field, many(field(name, number, inner, m.GetName()+"."+entry)))
	return m
}

func enumeration(name string, values map[string]int32) *descriptorpb.EnumDescriptorProto {
	e := &descriptorpb.EnumDescriptorProto{Name: &name}
	add := func(n string, v int32) {
		e.Value = append(e.Value, &descriptorpb.EnumValueDescriptorProto{Name: proto.String(name + "_" + n), Number: &v})
	}
	add("UNKNOWN", 0) // the first of proto3
	for n, v := range values {
		add(n, v)
	}
	return e
}

var stateNumbers = map[string]int32{
	"QUEUED": 1, "INITIALIZING": 2, "RUNNING": 3, "PAUSED": 4, "COMPLETE": 5, "EXECUTOR_ERROR": 6, "SYSTEM_ERROR": 7, "CANCELED": 8, "PREEMPTED": 9, "CANCELING": 10,
}

var typeNumbers = map[string]int32{
	"TASK_STATE": 1, "TASK_START_TIME": 2, "TASK_END_TIME": 3, "TASK_OUTPUTS": 4, "TASK_METADATA": 5,
	"EXECUTOR_START_TIME": 6, "EXECUTOR_END_TIME": 7, "EXECUTOR_EXIT_CODE": 8, "EXECUTOR_STDOUT": 11, "EXECUTOR_STDERR": 12, "SYSTEM_LOG": 13,
}

// eventType is events.Event.
var eventType = func() protoreflect.MessageDescriptor {
	event := message("Event",
		field("id", 1, str, ""), field("timestamp", 2, str, ""),
		data(field("state", 3, enum, "State")), data(field("start_time", 4, str, "")), data(field("end_time", 5, str, "")),
		data(field("outputs", 6, inner, "Outputs")), data(field("metadata", 7, inner, "Metadata")), data(field("exit_code", 10, i32, "")),
		data(field("stdout", 13, str, "")), data(field("stderr", 14, str, "")), data(field("system_log", 15, inner, "SystemLog")),
		field("attempt", 16, u32, ""), field("index", 17, u32, ""), field("type", 18, enum, "Type"),
	)
	event.OneofDecl = []*descriptorpb.OneofDescriptorProto{{Name: proto.String("data")}}
	file, err := protodesc.NewFile(&descriptorpb.FileDescriptorProto{
		Name: proto.String("events.proto"), Package: proto.String("events"), Syntax: proto.String("proto3"),
		MessageType: []*descriptorpb.DescriptorProto{
			event,
			message("OutputFileLog", field("path", 1, str, ""), field("size_bytes", 2, str, ""), field("url", 3, str, "")),
			message("Outputs", many(field("value", 1, inner, "OutputFileLog"))),
			withMap(message("Metadata"), "value", "ValueEntry", 1),
			withMap(message("SystemLog", field("msg", 1, str, ""), field("level", 2, str, "")), "fields", "FieldsEntry", 3),
			message("WriteEventResponse"),
		},
		EnumType: []*descriptorpb.EnumDescriptorProto{enumeration("State", stateNumbers), enumeration("Type", typeNumbers)},
	}, nil)
	if err != nil {
		panic(err)
	}
	return file.Messages().ByName("Event")
}()

var responseType = eventType.ParentFile().Messages().ByName("WriteEventResponse")
